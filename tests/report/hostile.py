"""Names of domains and classes that are meant to break a page."""

HOSTILE_DOMAINS = ("<script>alert(1)", "\"><img src=x onerror='alert(2)'>")
HOSTILE_CLASSES = ("<b>bold & {{ 7 * 7 }}", "{% raw %}", "$x$")
