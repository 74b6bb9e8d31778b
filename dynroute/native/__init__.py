"""Loading of the native libraries, and their functions as Python ones."""
