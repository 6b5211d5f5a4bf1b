"""Run exported networks on images."""
