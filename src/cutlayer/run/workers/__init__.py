"""Several processes of one server, each with the base and a share of the devices (`cutlayer serve --workers`)."""
