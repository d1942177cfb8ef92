"""Our own surface: jobs as jobs, and the two calls that wait for an answer."""
