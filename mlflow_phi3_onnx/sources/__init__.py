"""From whatever the user holds to a checked model folder, with a record of where it came from."""
