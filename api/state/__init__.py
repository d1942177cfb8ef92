"""What one API process keeps in memory, and every request uses. Knows no route."""
