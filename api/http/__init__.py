"""What a route reads with and answers with. Knows no job."""
