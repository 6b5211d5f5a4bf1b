"""Videos, cameras and streams: read frames, track objects, detect."""
