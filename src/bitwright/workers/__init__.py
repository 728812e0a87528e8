"""Independent tasks in worker processes: `tasks.run`, for bulk encoding and whatever else has many of them."""
