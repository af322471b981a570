"""What a user says: flags, presets, plugins, and the errors that name them."""
