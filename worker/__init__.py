"""The worker runs on every host: claims jobs, runs objectives in child processes, keeps leases."""
