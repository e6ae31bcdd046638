"""Sets whose labels are wrong as they come: collected from the web or labelled by machines."""
