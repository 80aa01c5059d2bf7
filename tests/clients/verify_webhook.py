"""Verifies one call by the library that Standard Webhooks publishes for Python: argument 1 is the secret, standard
input holds {"headers": {...}, "body": "..."}. Exit 0: genuine, 1: not."""
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

call = json.load(sys.stdin)
try:
    Webhook(sys.argv[1]).verify(call["body"], call["headers"])
except WebhookVerificationError as e:
    sys.exit(str(e) or "not genuine")
