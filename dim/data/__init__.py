"""Reading labelled images from every supported layout, and checking them."""
