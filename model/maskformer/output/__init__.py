"""Result files, pictures, tables and progress reports."""
