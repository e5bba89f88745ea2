"""What supervisors look after: one server each, whoever started it."""
