"""What stands before every route: connections and middleware. Knows no job."""
