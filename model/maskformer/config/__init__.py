"""The schema of a recipe, and how a recipe is found, merged, checked and written."""
