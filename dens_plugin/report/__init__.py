"""What runs tell: curves, errors, tables, pages."""
