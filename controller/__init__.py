"""The controller drives a search: asks the algorithm for points, queues jobs, reads results."""
