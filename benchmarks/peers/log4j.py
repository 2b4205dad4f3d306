"""Logs off, for the two servers in Java; errors, and what workers write to stderr, are kept."""

QUIET = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders><Console name="out"><PatternLayout pattern="%p %c %m%n"/></Console></Appenders>
  <Loggers>
    <Root level="error"><AppenderRef ref="out"/></Root>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_LOG" level="warn"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="MMS_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
  </Loggers>
</Configuration>
"""
