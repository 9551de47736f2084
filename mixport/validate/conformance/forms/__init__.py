"""One module for each family of operator forms that the kit measures."""
