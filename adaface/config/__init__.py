"""Options of a training run: groups, recipes, command line, rules."""
