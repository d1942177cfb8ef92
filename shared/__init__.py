"""What a job is: pure modules that the API, the workers and the command line share."""
