"""Images and labels in, (x0, labels) out; how they are dealt to clients."""
