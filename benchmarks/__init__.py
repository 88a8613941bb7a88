"""How fast Luna is, and how much memory it needs; run from the checkout, not installed by the wheel."""
