"""Takes a `Request` and a `Coupling`, returns candidates: networks near their budgets, measured."""
