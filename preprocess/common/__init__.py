"""What every room needs: errors, files, locks, JSON, YAML, HTML."""
