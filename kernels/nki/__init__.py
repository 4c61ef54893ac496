"""NKI sources, one kernel a file; they import only nki, and run under it, on a device, or under the emulator."""
