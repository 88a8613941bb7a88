"""Model cards: their form, and what those of all Luna models say."""
