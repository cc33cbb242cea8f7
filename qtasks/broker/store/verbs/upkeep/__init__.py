"""Facts about the store itself: its size, its checks, what retention removes next."""
