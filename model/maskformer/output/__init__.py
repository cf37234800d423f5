"""What a person or another program reads: result files, pictures, tables, progress."""
