"""What makes int8 exports trustworthy: enough distinct images, and float layers chosen by measurement."""
