"""Messages to the receivers of notification channels (spec/notifications-and-policy section 5)."""
