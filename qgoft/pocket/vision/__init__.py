"""The pocket world for the eye: 32 x 32 pictures drawn from labels."""
