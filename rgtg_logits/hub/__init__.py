"""To the Hub and back: one commit or none, whole files or an error that says what to do."""
