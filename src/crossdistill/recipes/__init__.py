"""Recipes: YAML files that `--recipe NAME` starts from."""
