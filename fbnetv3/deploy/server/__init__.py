"""Answer HTTP requests with exported networks: `fbnetv3 serve`."""
