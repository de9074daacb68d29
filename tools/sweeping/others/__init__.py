"""Further libraries of networks, a module for each by the library's name: `names()`, `create(name)`, `inputs(name, model)`."""
