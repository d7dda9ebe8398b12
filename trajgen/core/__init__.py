"""Types, protocols, the registry, schedules and errors: what every other room may import."""
