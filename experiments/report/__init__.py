"""The report: what runs and studies have come to, as one HTML page."""
