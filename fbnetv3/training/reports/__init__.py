"""What one looks at after an evaluation: tables and figures of a classifier's predictions and of its inputs."""
