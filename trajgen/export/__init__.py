"""Plans as programs: pure functions of tensors, noise among them, that can be captured, compiled and exported."""
