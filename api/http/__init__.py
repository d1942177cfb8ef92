"""What a route reads with and responds with. Knows no job."""
