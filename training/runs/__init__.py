"""What a training leaves behind: its folder, a comparison with others, and its record in a tracker."""
