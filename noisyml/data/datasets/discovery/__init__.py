"""Category discovery: data sets of which some classes, and some images of these, are labelled."""
