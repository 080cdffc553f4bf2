"""A file a page. Each has `page(views)`, and reads nothing but what these views give."""
