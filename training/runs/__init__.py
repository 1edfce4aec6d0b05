"""What a training leaves behind: its folder, and how runs compare."""
