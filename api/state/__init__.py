"""What one API process holds, and every request uses. Knows no route."""
