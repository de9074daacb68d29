"""Further libraries, a module for each by its name: `names()`, `create(name)`, `inputs(name, model)`."""
