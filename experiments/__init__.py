"""Experiments made of cells (task, model, setting, seed): scheduling, results, tables, pictures, uploads."""
