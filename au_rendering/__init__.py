"""The face renderer: rig, paint, light and pixels, and the AUs that each picture shows."""
