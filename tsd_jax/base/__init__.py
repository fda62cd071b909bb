"""What every part may use: records, errors, configs, accounts."""
