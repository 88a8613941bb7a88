"""What the scripts share: configuration files, errors, hardware, and files that are whole or not there."""
